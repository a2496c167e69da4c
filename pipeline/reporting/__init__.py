"""Tables of compared runs on a terminal, and pages of one file for a browser.

Imports the base modules, ``catalogue``, ``output``, ``sweep`` and ``pages``.

==============  ==============================================================================
``protocols``   the settings that make two runs incomparable, in words
``run_groups``  runs that are equal in all but the seed
``run_rows``    their means, and differences to a baseline
``run_tables``  the tables of ``pipeline.compare``; ``run_files``: CSV, JSON and LaTeX
``published``   published results of the same protocol; ``published_tables``: their tables
``sweep_page``  the report of a sweep; ``sweep_charts`` are its charts
==============  ==============================================================================
"""
