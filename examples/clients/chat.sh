#!/usr/bin/env bash
# A streamed chat answer with curl.   examples/clients/chat.sh [URL] [PROMPT]
set -euo pipefail
url=${1:-http://127.0.0.1:8080}
prompt=${2:-Write a haiku about prefetching.}
body=$(python3 -c 'import json, sys; print(json.dumps({"messages": [{"role": "user", "content": sys.argv[1]}],
  "max_tokens": 80, "temperature": 0, "stream": True}))' "$prompt")
curl --silent --show-error --fail-with-body --no-buffer "$url/v1/chat/completions" -H 'Content-Type: application/json' \
  ${OPENAI_API_KEY:+-H "Authorization: Bearer $OPENAI_API_KEY"} -d "$body"
