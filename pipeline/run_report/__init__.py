"""``report.html``: what one run learned, or how several runs compare, on one page.

Imports the base modules, ``data``, ``output`` and ``pages``. Training writes the report after each
task; therefore nothing here imports a library that training does not use, and a page takes
fractions of a second.

The same files give the same bytes. Every figure is one of ``results.json``, ``metrics.jsonl`` or
``predictions.jsonl``, or is computed from them here. What an older run lacks is said in its place.

===============  ====================================================================
``page``         ``write_report``, and the parts of a run's page
``comparison``   the page of several runs, whose rows the command has grouped
``run``          the files of a run as values
``mistakes``     confusions, confident mistakes and calibration from predictions
``thumbnails``   small images of tested samples from the shards
``heat_map``     a matrix as a table with shades, and as an overview if it is large
``curves``       the charts of a run; ``bars`` those with bars
``anchors``      charts and tables of anchors and features
``templates/``   the two pages
===============  ====================================================================
"""
