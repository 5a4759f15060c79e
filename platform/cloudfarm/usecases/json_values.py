"""What JSON from strangers may hold: as the domain has it, for what requests say."""

from cloudfarm.domain.json_values import MAX_DEPTH, check_json, check_text

__all__ = ["MAX_DEPTH", "check_json", "check_text"]
