"""Prompt templates of our own, for backbones that bring no chat template.

Each is a Jinja template over `messages` (role, content, instruction, input) and `add_generation_prompt`, the same
variables a user-written template gets; `eos_token` ends an answer and is supervised.
"""

from __future__ import annotations

# The layout of Stanford Alpaca: headings in plain text, so it works for any base model.
ALPACA = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' -%}
{{ '### Instruction:\\n' + message.instruction + '\\n\\n' }}
{%- if message.input %}{{ '### Input:\\n' + message.input + '\\n\\n' }}{% endif -%}
{%- else -%}
{{ '### Response:\\n' + message.content + eos_token + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif -%}
"""

# As little as possible: each message on its own line.
PLAIN = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ message.content + eos_token + '\\n' }}
{%- else -%}
{{ message.content + '\\n' }}
{%- endif -%}
{%- endfor -%}
"""

# For masked encoders: the answer's place is a mask, earlier answers stand in theirs.
CLOZE = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ 'Answer: ' + message.content + '.\\n' }}
{%- else -%}
{{ message.content + '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'Answer: ' + mask_token + '.' }}{% endif -%}
"""

BUILTIN = {"alpaca": ALPACA, "plain": PLAIN, "cloze": CLOZE}
