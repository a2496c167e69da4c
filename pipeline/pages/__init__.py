"""The pieces of which every page for a browser consists.

Imports the base modules.

A page works without a network. It promises the same in every report: one file; a strict
Content-Security-Policy, with hashes of its one style and its one script; no information by colour
alone; equal bytes for equal input; a keyboard and a screen reader reach everything; every value is
escaped.

Pages are jinja2 templates with autoescape, charts are SVG made here. Two libraries were left out:

* Plotly needs WebGL and ``unsafe-eval`` for parallel coordinates, inserts styles that the policy
  forbids, and adds 4.5 MB to each page.
* Matplotlib writes inline styles, which the policy forbids, and no text alternatives.

==============  ===================================================================
``page``        a template rendered to one self-contained page
``templates/``  ``page.html``, the frame of every page, and macros for its parts
``charts``      charts of plain values: lines, points, parallel coordinates
``scale``       positions of values on an axis, linear, logarithmic or by category
``svg``         the marks that charts consist of
==============  ===================================================================
"""
