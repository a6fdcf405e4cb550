"""Files: headers, hashes, what others wrote read with care, the one store of lines.

In: paths. Out: objects with a header that says what made them. Every file of the project is
written here, whole or line by line; nothing is ever unpickled.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
