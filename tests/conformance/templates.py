"""What template_oracle.py renders. The full templates are this project's, in the idioms of published families."""

TEMPLATES = {
    # Headers and end-of-turn tokens, a date, the first system message taken out: as Llama 3 models do it.
    "header-style": r"""{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message goes first, whatever else there is. #}
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\n\n"}}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One tool call at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- tool_call.arguments | tojson }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",
    # Turns must alternate, the system message joins the first user turn: as Mistral models do it.
    "alternating": """{%- if messages|length > 0 and messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0, seen=[]) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("Roles must alternate: " ~ message.role) }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- set ns.seen = ns.seen + [message.role] %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
{{ ns.seen }} {{ ns.index }}
""",
    # The last question is searched from the end, thoughts before it are cut: as Qwen3 models do it.
    "thinking": r"""{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}""",
    # Plain lines with every white-space habit.
    "white-space": "{% for m in messages %}\n  {% if m.role == 'user' %}\n    U: {{ m.content }}\n  {%- elif m.role == 'assistant' +%}\n"
                   "\tA: {{- m.content -}}\n  {% else %}\n{{ m.role }}\n {#- note -#} \n{% endif %}\n\n{% else %}nothing\n{% endfor %}\n\n",
}

SNIPPETS = [
    # literals and operators
    "{{ 1 + 2 * 3 - 4 // 3 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ -7 // 2 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 1.5 + 1 }} {{ 2.0 }} {{ 1e3 }} {{ 1_000 }}",
    "{{ 1.0e20 }} {{ 1e-5 }} {{ 0.1 + 0.2 }} {{ 100000.0 * 10 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 1e16 }} {{ 123456789.125 }}",
    "{{ 'a' ~ 1 ~ none ~ true ~ 1.0 }} {{ 'a' 'b' \"c\" }} {{ 'ab' * 3 }} {{ 2 * 'x' }} {{ 'x' * -1 }}",
    r"{{ 'a\n\t\\\'\"\x41\u00e9\U0001F600\101' }} {{ 'back\qslash' }}",
    "{{ 1 < 2 }} {{ 2 <= 1 }} {{ 1 == 1.0 }} {{ 1 == true }} {{ 'a' != 'b' }} {{ 'a' < 'b' }} {{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ [1,2] < [1,3] }}",
    "{{ not true }} {{ not not 1 }} {{ 0 or 'x' }} {{ 1 and 'y' }} {{ '' and 1 }} {{ none or 0 }} {{ not 1 == 2 }}",
    "{{ 'a' in 'abc' }} {{ 1 in [1,2] }} {{ 3 not in [1,2] }} {{ 'k' in {'k': 1} }} {{ 'x' in missing }} {{ not 'a' in 'b' }}",
    "{{ 'yes' if messages else 'no' }} {{ 'only' if false }} {{ 1 if 0 else 2 if 0 else 3 }} {{ (1 if true else 2) + 1 }}",
    "{{ -1 }} {{ - 1 + 2 }} {{ +3 }} {{ -2|abs }} {{ (-2)|abs }} {{ --1 }} {{ -messages|length }}",
    "{{ none }} {{ None }} {{ True }} {{ false }} {{ [] }} {{ () }} {{ {} }} {{ missing }}.",
    "{{ [1, 'a', \"it's\", none, true, 1.5, [2], {'k': 'v\\n'}] }} {{ {'a': 1, 'b': [1, 2]} }} {{ 'é' }} {{ ['é', '\\u200b', '\\x07', '\"', '\\'\"'] }}",
    "{{ {'a': {'b': 1}}.a.b }} {{ {'a': 1}['a'] }} {{ {'a': 1, 'a': 2} }} {{ {'a': 1}.b is defined }}",
    "{{ 9223372036854775807 }} {{ 'a' == 1 }} {{ [1] == [1.0] }} {{ {'a': 1} == {'a': true} }} {{ none == none }} {{ missing == missing2 }}",
    # subscripts and slices
    "{{ 'héllo'[1] }} {{ 'héllo'[-1] }} {{ 'héllo'[1:3] }} {{ 'héllo'[::-1] }} {{ 'abc'[5] }} {{ 'abc'[:-1] }} {{ 'abc'[-2:] }}",
    "{{ [1,2,3][0] }} {{ [1,2,3][-1] }} {{ [1,2,3,4][1:-1] }} {{ [1,2,3,4][::2] }} {{ [1,2,3,4][::-2] }} {{ [1,2,3][10:] }} {{ [1,2,3][-10:2] }} {{ [1,2,3,4][3:0:-1] }}",
    "{{ messages[0].role }}", "{{ messages[0]['content'] }}", "{{ messages[99] }}", "{{ messages[99].role }}", "{{ messages[-1].content }}",
    "{{ messages[:1] | length }} {{ messages[1:] | length }} {{ messages|first is defined }}",
    "{{ missing }}", "{{ missing.x }}", "{{ missing['x'] }}", "{{ missing + 'a' }}", "{{ missing ~ 'a' }}", "{{ missing() }}", "{{ none.x }}", "{{ none.x.y }}", "{{ 'abc'.x }}",
    "{{ 1 + 'a' }}", "{{ 'a' + 1 }}", "{{ 1 < 'a' }}", "{{ 1 / 0 }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ none + 1 }}", "{{ [1] + [2] }}", "{{ 1 in 1 }}", "{{ 1 in 'a' }}",
    "{{ true + 1 }} {{ true * 3 }} {{ 'x' * true }}",
    # statements
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.index0 }} {{ loop.first }} {{ loop.last }} {{ loop.revindex }} {{ loop.revindex0 }};{% else %}none{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}>{{ m.role }}>{{ loop.nextitem.role if not loop.last }}|{% endfor %}",
    "{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ m.role }}{% else %}empty{% endfor %}",
    "{% for a in [1,2] %}{% for b in 'xy' %}{{ a }}{{ b }}{{ loop.index }}{{ loop.depth }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }},{% endfor %}{% for k in {'a': 1} %}{{ k }}{% endfor %}",
    "{% for k, v in {'a': 1}|items %}{{ k }}{{ v }}{% endfor %}{% for (a, b) in [[1,2],[3,4]] %}{{ a+b }}{% endfor %}",
    "{% for x in missing %}a{% else %}b{% endfor %}", "{% for x in none %}a{% endfor %}", "{% for x in 5 %}a{% endfor %}", "{% for a, b in [[1,2,3]] %}x{% endfor %}",
    "{% for i in range(3) %}{{ i }}{% endfor %}{% for i in range(2, 8, 3) %}{{ i }}{% endfor %}{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in [1,2,3] %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% set x = 1 %}{% for i in [1,2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}{% if false %}{% set y = 2 %}{% endif %}{{ y is defined }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = 1, 2 %}{{ c|length }}{% set d = [1, 2,] %}{{ d }}",
    "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s ~ m.role %}{% endfor %}{{ ns.n }}{{ ns.s }}{{ ns.other is defined }}",
    "{% set ns = namespace() %}{% set ns.x = 5 %}{{ ns.x }}{{ ns['x'] }}", "{% set x = 1 %}{% set x.y = 2 %}", "{% set ns = namespace({'a': 3}) %}{{ ns.a }}",
    "{% set x %}block {{ 1 + 1 }}{% endset %}[{{ x }}]{{ x|length }}",
    "{% if messages|length == 0 %}zero{% elif messages|length == 1 %}one{% else %}many{% endif %}",
    "{% macro f(a, b='B', c=none) %}<{{ a }}|{{ b }}|{{ c }}>{% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(b=3, a=4) }}{{ f() }}",
    "{% macro fact(n) %}{% if n <= 1 %}1{% else %}{{ n * fact(n - 1)|int }}{% endif %}{% endmacro %}{{ fact(6) }}",
    "{% macro f() %}{{ bos_token }}{{ messages|length }}{% endmacro %}{% for i in [1] %}{{ f() }}{% endfor %}{{ f()|upper }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(z=2) }}",
    "{{ raise_exception('no') }}", "{% if messages|length > 1 %}{{ raise_exception('too many') }}{% endif %}fine",
    "{% raw %}{{ not }} {% this %}{% endraw %} after", "a {%- raw -%}  x  {%- endraw -%}  b", "{% raw %}\n x\n  {% endraw %}\n y",
    # filters
    "{{ '  a b '|trim }}|{{ 'xxaxx'|trim('x') }}|{{ ' \\u3000\\xa0é \\n'|trim }}|{{ 5|trim }}|{{ missing|trim }}|",
    "{{ messages|length }} {{ 'héé'|length }} {{ {'a': 1}|length }} {{ missing|length }} {{ [1,2]|count }}", "{{ 5|length }}", "{{ none|length }}",
    "{{ {'a': [1, 2.5, none, true, 'é\"\\n<>&\\u2028\\x01']}|tojson }} {{ []|tojson }} {{ {}|tojson }} {{ 'x'|tojson }} {{ messages|tojson }}",
    "{{ {'a': [1, {'b': []}], 'c': {}}|tojson(indent=2) }}", "{{ [1, [2, 3]]|tojson(indent=4) }}", "{{ missing|tojson }}", "{{ [1]|tojson(indent=0) }}",
    "{{ 'aßé'|upper }} {{ 'ÀB'|lower }} {{ 'hELLO wORLD'|capitalize }} {{ 'hello wORLD-foo (bar) it\\'s'|title }} {{ none|upper }}",
    "{{ [1, 'a', none]|join('-') }} {{ []|join(',') }} {{ 'abc'|join('.') }} {{ messages|join(', ', attribute='role') }} {{ missing|join }} {{ {'a': 1, 'b': 2}|join }}",
    "{{ missing|default('d') }} {{ ''|default('d') }} {{ ''|default('d', true) }} {{ none|d('x') }} {{ 0|default(5, boolean=true) }} {{ missing|default }}|",
    "{{ [1,2]|first }} {{ [1,2]|last }} {{ 'abc'|first }} {{ 'abc'|last }} {{ []|first }} {{ {'a': 1, 'b': 2}|last }} {{ messages|map(attribute='role')|list }}",
    "{{ 'abc'|list }} {{ {'a': 1}|list }} {{ {'a': 1}|items|list }} {{ missing|items|list }}", "{{ 'a'|items|list }}", "{{ (1,) }} {{ (1, 2) == [1, 2] }} {{ (1, 2)[0] }} {% set t = 1, 'a' %}{{ t }}", "{{ 5|list }}",
    "{{ 'aaa'|replace('a', 'b') }} {{ 'aaa'|replace('a', 'b', 2) }} {{ 'abc'|replace('', '-') }} {{ 5|replace(5, 6) }}",
    "{{ 5|string + 'a' }} {{ '12'|int + 1 }} {{ 'x'|int }} {{ 'x'|int(7) }} {{ 3.9|int }} {{ ' 4 '|int }} {{ '3.7'|int }} {{ none|int }} {{ true|int }}",
    "{{ [1,2,3]|reverse|list }} {{ 'abc'|reverse }} {{ 'a\\nb\\n\\nc'|indent }} {{ 'a\\nb'|indent(2, true) }} {{ 'a\\n\\nb\\n'|indent(2, blank=true) }} {{ 'a\\nb'|indent('> ') }}",
    "{{ [1,2,3,4]|select('odd')|list }} {{ [1,2,3]|reject('equalto', 2)|list }} {{ [0,1,'']|select|list }} {{ [1, 'a']|map('string')|list }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }} {{ messages|rejectattr('role', 'eq', 'user')|map(attribute='role')|join('+') }} {{ messages|selectattr('nope')|list }}",
    "{{ messages|selectattr('role', 'in', ['user', 'system'])|list|length }} {{ [' a ', 'b ']|map('trim')|join('|') }} {{ [{}]|map(attribute='x', default='z')|list }}",
    "{{ 'a' ~ 'b'|upper }} {{ 'a' + 'b'|upper }} {{ ('a' ~ 'b')|upper }} {{ 'a b'|upper|lower|length }}",
    # tests
    "{{ messages is defined }} {{ missing is defined }} {{ missing is undefined }} {{ missing is not defined }} {{ none is none }} {{ tools is none }} {{ tools is not none }}",
    "{{ 'a' is string }} {{ 1 is string }} {{ {} is mapping }} {{ [] is mapping }} {{ [] is iterable }} {{ 'a' is iterable }} {{ 1 is iterable }} {{ missing is iterable }} {{ none is iterable }}",
    "{{ [] is sequence }} {{ {} is sequence }} {{ 'a' is sequence }} {{ 1 is sequence }} {{ 1 is number }} {{ true is number }} {{ 1.0 is number }} {{ 1 is integer }} {{ true is integer }} {{ 1.0 is float }}",
    "{{ true is boolean }} {{ 1 is boolean }} {{ true is true }} {{ 1 is true }} {{ false is false }} {{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }}",
    "{{ 1 is equalto 1 }} {{ 1 is eq 2 }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 3 is ge 3 }} {{ 1 is in [1] }} {{ 'x' is in 'xyz' }} {{ 1 is not in [1] }}",
    "{{ not missing is defined }} {{ missing is defined and missing.x }} {{ missing is not defined or missing.x }} {{ 1 if missing is defined else 2 }} {{ (messages is defined) == true }}",
    # methods
    "[{{ ' a '.strip() }}] [{{ ' a '.lstrip() }}] [{{ ' a '.rstrip() }}] [{{ 'xyaxy'.strip('yx') }}] [{{ '\\n\\na'.lstrip('\\n') }}] [{{ 'éaé'.strip('é') }}]",
    "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }} {{ 'a b c'.split(none, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'a-b-c'.rsplit('-', 1) }} {{ 'a b c '.split(maxsplit=1) }}",
    "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.startswith('') }} {{ 'abc'.find('c') }} {{ 'éb'.find('b') }} {{ 'abc'.find('z') }} {{ 'abab'.rfind('ab') }} {{ 'aaaa'.count('aa') }}",
    "{{ 'aXb'.upper() }} {{ 'aXb'.lower() }} {{ 'aXb cD'.title() }} {{ 'aXb'.capitalize() }} {{ 'a-b'.replace('-', '+') }} {{ 'aaa'.replace('a', 'b', 1) }} {{ '-'.join(['a', 'b']) }}",
    "{{ 'a\\nb\\r\\nc\\x0bd\\u2028e'.splitlines() }} {{ 'a\\n'.splitlines(true) }} {{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.txt'.removesuffix('.txt') }}",
    "{{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 2) }} {{ {'a': 1}.keys()|list }} {{ {'a': 1}.values()|list }} {{ messages[0].get('role', 'x') if messages }}",
    "{{ ''.split('') }}", "{{ 1.strip() }}", "{{ [].strip() }}", "{{ 'a'.join([1]) }}", "{{ missing.strip() }}", "{{ none.strip() }}", "{{ 'a'.startswith(1) }}", "{{ 'a'.get('b') }}",
    # white space and comments
    "  {% if true %}  \n  x  \n  {% endif %}  \n y", "a\n  {%- if true -%}  \n  x  \n  {%- endif -%}  \n y", "a {#- c -#} b", "a\n  {# c #}\n b", "\n\n{% if true %}\n\nx{% endif %}\n\n",
    "a {{- ' b ' -}} c", "  {{ 1 }}  \n  {{ 2 }}\n", "{%+ if true %}x{% endif +%}\ny", "  {%+ if true %}x{%- endif %}\n\ny\n", "x\r\ny\r{% if true %}\r\nz{% endif %}\r\n", "x\n", "x\n\n", "\n", "",
    "{% if true %}{% endif %}\n  {% if true %}{% endif %}\n end", "t {% if true %} u {% endif %} v", "\t {% if true %}a\t {% endif %}\n\t\tb", "{{ 'a' }}\n{{ 'b' }}\n",
    "{{ '}}' }} {{ '%}' }} {{ {'a': {'b': 1}} }} {{ {'a':{'b':1}}['a']['b'] }} { {{ 1 }} } {% if '%}' == '%}' %}y{% endif %}", "{ % }} %} #}", "{{1}}{{2}}", "{#{{ x }}#}y",
    "é {{- 1 }}\u00a0{%- if true %} x{% endif %}\u3000{{- 2 }}",
    # syntax errors
    "{{", "{{ 1", "{% if x %}", "{% endif %}", "{% for x in %}{% endfor %}", "{% for %}", "{{ 1 + }}", "{{ (1 }}", "{{ [1 }}", "{% if %}{% endif %}", "{% else %}", "{{ 'a }}", "{# x",
    "{% for x in [1] %}{% endif %}", "{{ a b }}", "{{ }}", "{% %}", "{% foo %}", "{{ 1 | }}", "{{ 1 is }}", "{{ ] }}", "{{ a. }}", "{{ a[] }}", "{% set %}", "{% set x = %}", "{{ ! }}", "{% raw %} x", "{{ 1 }",
    "{{ f(a=1, 2) }}", "{% macro %}{% endmacro %}", "{% macro f(a %}{% endmacro %}", "{% set loop = 1 %}{% for x in [1] %}{% endif %}", "{% break %}", "{% if true %}{% elif %}{% endif %}", "{{ 1 if }}", "{{ 'a' is string is }}",
]

# Each refused by an error that names it and its line, the second.
UNSUPPORTED = [
    ("\n{% include 'x' %}", "include"), ("\n{% extends 'x' %}", "extends"), ("\n{% block x %}{% endblock %}", "block"), ("\n{% import 'x' as y %}", "import"),
    ("\n{% call f() %}{% endcall %}", "call"), ("\n{% filter upper %}{% endfilter %}", "filter"), ("\n{{ 'a'|xmlattr }}", "xmlattr"), ("\n{{ 'a'|nope }}", "nope"),
    ("\n{{ 2 ** 3 }}", "**"), ("\n{{ 'a'.format(1) }}", "format"), ("\n{{ [].append(1) }}", "append"), ("\n{{ 'a' is sameas 'a' }}", "sameas"),
    ("\n{{ '%s' % 'a' }}", "%"), ("\n{{ strftime_now('%Y') }}", "strftime_now"), ("\n{% for x in [1] recursive %}{% endfor %}", "recursive"),
    ("\n{{ f(*[1]) }}", "unpacked"), ("\n{{ {1: 2} }}", "key"), ("\n{{ x.__class__.__mro__() }}", "__mro__"), ("\n{{ range(1000000) }}", "range"),
]
