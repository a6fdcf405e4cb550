from .claims import Claim as Claim
from .claims import verdicts as verdicts
from .effects import differences as differences
from .effects import summarise as summarise
from .outcomes import Outcome as Outcome
from .outcomes import OutcomeStore as OutcomeStore
from .setup import InterventionConfig as InterventionConfig
from .setup import prepare_interventions as prepare_interventions
