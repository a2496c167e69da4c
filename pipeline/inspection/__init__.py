"""What a folder or URL holds, whether it is complete, how it looks, and how a run proceeds.

Imports the base modules, ``data``, ``data.prepare``, ``model``, ``output``, ``sweep`` and
``inference``.

===============  ==================================================================
``kinds``        which kind of thing a folder holds, by its files
``findings``     facts, files and faults, the same for every kind
``data_set``     shards against their index; ``run``, ``snapshot``, ``sweep``, ``export``
``tables``       findings on a terminal
``grid``         images of each class as the model sees them; ``sheet`` draws them
``progress``     where a running run stands; ``watch`` follows it
===============  ==================================================================
"""
