from .choices import GPQA as GPQA
from .choices import MMLU as MMLU
from .choices import chosen as chosen
from .livecodebench import LiveCodeBench as LiveCodeBench
from .sandbox import Limits as Limits
from .sandbox import runs as runs
