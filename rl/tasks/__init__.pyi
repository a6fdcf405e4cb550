from .maths import maths_correct as maths_correct
from .prompts import choose_template as choose_template
from .prompts import render_prompt as render_prompt
from .questions import Question as Question
from .questions import QuestionSet as QuestionSet
from .questions import load_questions as load_questions
from .verdicts import AnswerVerifier as AnswerVerifier
