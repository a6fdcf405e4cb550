from .config import JudgingConfig as JudgingConfig
from .job import judge_traces as judge_traces
from .panel import Judge as Judge
from .panel import Panel as Panel
from .votes import consensus_label as consensus_label
from .votes import fleiss_agreement as fleiss_agreement
