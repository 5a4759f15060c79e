"""The only code that knows Ray's insides: lease nodes, host agents, the start-up hook, jobs and Serve clients."""
