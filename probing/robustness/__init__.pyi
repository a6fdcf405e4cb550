from .sample_size import SizePoint as SizePoint
from .stability import compare as compare
from .stability import read_probes as read_probes
