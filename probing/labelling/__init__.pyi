from .agreement import Agreement as Agreement
from .agreement import Labelling as Labelling
from .agreement import cohen_agreement as cohen_agreement
from .agreement import cohen_kappa as cohen_kappa
from .cause import CauseConfig as CauseConfig
from .cause import cause_label as cause_label
from .cause import label_by_cause as label_by_cause
from .rules import rule_labels as rule_labels
