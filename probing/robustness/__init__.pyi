from .sample_size import SizePoint as SizePoint
from .sample_size import agreement_by_size as agreement_by_size
from .sample_size import measure_folder as measure_folder
from .stability import compare_pair as compare_pair
from .stability import compare_probes as compare_probes
from .stability import read_probes as read_probes
