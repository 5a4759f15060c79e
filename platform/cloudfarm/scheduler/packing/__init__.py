"""Where a slice goes: the farm's allocator for fractional GPUs. ``docs/packing.md`` explains and measures it.

The policy on one page. Every node has a *worth*: the GPU that it can still sell (``worth.py``). A request goes where
it lowers the worth least; near ties go to the first node. The worth of a node is

* what its free GPUs will hold. A free piece of a GPU is worth the best filling with sizes that are really asked for, at
  their prices (``prices.py``): 190 milli beside a tenant of 810 are worth nothing where nobody asks for so little;
* less what its CPUs and its memory will leave unused: GPUs without CPUs beside them cannot be sold;
* plus a little for wholly free GPUs standing together, as far as requests for several GPUs come.

Sizes, needs and gangs are learned from the requests seen so far (``demand.py``); nothing else is known, and no number
is set for a particular workload. ``allocator.py`` keeps the nodes' state and, for each kind of request, its cost on
every node, of which only the nodes that changed are computed again; so a decision is the minimum of one array.
"""

from cloudfarm.scheduler.packing.allocator import Allocator
from cloudfarm.scheduler.packing.demand import Demand, Outlook
from cloudfarm.scheduler.packing.gang import place_gang
from cloudfarm.scheduler.packing.shapes import Node, Placement, Request

__all__ = ["Allocator", "Demand", "Node", "Outlook", "Placement", "Request", "place_gang"]
