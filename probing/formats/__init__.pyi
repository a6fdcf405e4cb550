from .drafts import Draft as Draft
from .drafts import Part as Part
from .job import ImportConfig as ImportConfig
from .job import ImportReport as ImportReport
from .job import import_traces as import_traces
from .known import FORMATS as FORMATS
from .known import Format as Format
