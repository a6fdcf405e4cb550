from .evidence import Evidence as Evidence
from .evidence import Witness as Witness
from .ratios import RATIOS as RATIOS
