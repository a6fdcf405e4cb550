from .headers import data_path as data_path
from .headers import file_hash as file_hash
from .headers import file_header as file_header
from .headers import read_object as read_object
from .headers import whole_file as whole_file
from .headers import write_json as write_json
from .jsonl import LineStore as LineStore
from .jsonl import read_lines as read_lines
