from .config import ViewerConfig as ViewerConfig
from .page import write_page as write_page
