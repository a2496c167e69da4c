"""Benchmarks: ``python -m pipeline.bench [NAME …]`` measures, prints a table and writes JSON.

Imports the base modules, ``distributed``, ``data``, ``data.prepare``, ``model``, ``classifiers``,
``methods``, ``output``, ``training`` and ``launching``.

**Add a benchmark** with one file and one line. The file ``NAME.py`` has one function::

    def measure(config: BenchConfig, world: World) -> Iterator[Figure]:
        timings = time_alternately({"ours": ours, "plain": plain}, config.bench, world.device)
        yield timings["ours"].rate("our stream", n_images, "images/s")
        yield timings["plain"].over(timings["ours"], "ours against plain", target="≥ 1")

The line is in ``BENCHMARKS`` of ``__main__``. A size that a user may change is a field of
``settings.BenchSizes``: ``bench.FIELD=VALUE`` on the command line. A benchmark that cannot be
measured here raises ``NotMeasured(reason)``. Both sides of a ratio do the same work, and
``time_alternately`` measures them in turn, after a warm-up, with the device synchronised.

=============  ===================================================================
``settings``   the configuration of a run, with the sizes of the benchmarks
``timing``     ``time_alternately``, ``Timing``, ``Figure``
``machine``    the machine, its software and the commit
``report``     the table and the JSON file
``drawn``      data sets of drawn images with any number of classes
``stage``      a run in the middle: its method at the start of a task
``flops``      the floating-point operations that a step needs
``memory``     the peak of memory
``network``    the bytes that a step sends, and the efficiency that they predict
``reference``  the straightforward step, as public prompt-tuning code does it
=============  ===================================================================
"""
