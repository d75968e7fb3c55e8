#!/usr/bin/env bash
# Connects somebody with curl alone: mints a link, prints it, and waits until it has ended.
#
#     WABERY_BASE_URL=https://wabery.example.com/v1 WABERY_API_KEY=wab_live_… ./connect.sh user_123
#
# Exits with 0 when the person has joined. The SDKs and the command line do the same and more; this shows what they send.
set -euo pipefail

reference=${1:?usage: connect.sh CUSTOMER_REFERENCE}
if [[ ! $reference =~ ^[A-Za-z0-9._:@-]+$ ]]; then
  echo "This script puts the reference into JSON as it is: letters, digits and ._:@- only." >&2
  exit 2
fi

# The key comes from a pipe: what stands in a command line, other users of the machine can read.
call() {
  curl --silent --show-error --fail-with-body \
    --config <(printf 'header = "Authorization: Bearer %s"\n' "$WABERY_API_KEY") "$@"
}

# One field of a one-line JSON object, enough for ids, links and states. Use jq for more.
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" <<<"$2"; }

# With an idempotency key a repeated request mints once.
intent=$(call "$WABERY_BASE_URL/registration-intents" --retry 3 \
  --header "Content-Type: application/json" \
  --header "Idempotency-Key: $(openssl rand -hex 16)" \
  --data "{\"customer_reference\": \"$reference\"}")
id=$(field id "$intent")
field wa_link "$intent"

# Each question is held open for up to 25 seconds, and answered at once when something changes. An intent in its grace phase
# has not ended: a message that was sent in time may still arrive.
status=PENDING phase=
while [[ $status == PENDING || $phase == grace ]]; do
  intent=$(call "$WABERY_BASE_URL/registration-intents/$id?wait=25" --retry 3)
  status=$(field status "$intent") phase=$(field phase "$intent")
done

echo "$status"
[[ $status == JOINED ]]
