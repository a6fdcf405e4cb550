from .backends import open_sampler as open_sampler
from .base import Sample as Sample
from .base import Sampler as Sampler
from .collect import collect_traces as collect_traces
from .config import AskConfig as AskConfig
from .config import CollectConfig as CollectConfig
from .responses import Response as Response
from .responses import ResponseStore as ResponseStore
