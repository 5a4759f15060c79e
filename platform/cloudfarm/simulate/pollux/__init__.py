"""Replays of the workloads of Pollux's published artifact: deep-learning jobs driven by measured profiles.

The artifact (Qiao et al., *Pollux: Co-adaptive Cluster Scheduling for Goodput-Optimized Deep Learning*, OSDI 2021;
petuum/adaptdl, branch ``osdi21-artifact``) publishes measurements, workloads and the completion time of every job
under several schedulers. Its simulator advances in steps of a scheduling interval; this one goes from event to event
and must give the same completion times. That is what makes completion times of our own simulations worth a look.

- ``files``: the artifact's files, from a folder or a zip, read as tables.
- ``scattered``: interpolation between measured points in space.
- ``applications``: what was measured of each kind of job, and how fast a job of it goes.
- ``workload``: which jobs arrive when.
- ``tiresias``: the discipline.
- ``replay``: all of it on the event engine.
"""
