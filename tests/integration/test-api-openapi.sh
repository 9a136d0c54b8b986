#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# docs/openapi.json against the server: the same routes with the same roles, and answers that have the described shape.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires jq --version
requires python3 --version
file=$PLATTER_SOURCE/docs/openapi.json

platterd --print-routes | sort >"$TMP/routes"
jq -r '.paths | to_entries[] | .key as $path | .value | to_entries[] |
       "\(.key | ascii_upcase) \($path) \(.value["x-platter-role"])"' "$file" | sort >"$TMP/described"
diff "$TMP/routes" "$TMP/described" || fail "the routes and docs/openapi.json differ"

start_platterd
make_pool
python3 "$PLATTER_SOURCE/tests/lib/openapi_check.py" "$file" "$PLATTER_SOCKET" || fail "an answer is not as described"
stop_platterd
