#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The command: JSON, names and tables of every noun, jobs that are not waited for, completion, help.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires jq --version
start_platterd
make_pool

json() { "$@" -o json >"$TMP/json" || fail "'$*' failed"; jq -e . "$TMP/json" >/dev/null || fail "'$*' prints no JSON"; }
is() { [ "$(jq -r "$1" "$TMP/json")" = "$2" ] || fail "$1 is $(jq -c "$1" "$TMP/json"), not $2"; }

json platter volume create db --size 10M --filesystem none
is .name db; is .size 10485760; is '.size | type' number
json platter volume list; is '.[0].name' db
json platter volume show db; is .size 10485760
json platter volume resize db 16MiB; is .size 16777216
json platter pool list; is '.[0].name' default; is '.[0].capacity | type' number
json platter pool show default
json platter attachment list; is . '[]'
json platter job list; is '.[0].state' succeeded
job=$(platter job list -o name | head -n 1)
json platter job show "$job"; is .id "$job"
json platter job wait "$job"; is .state succeeded
json platter version; is .api_level 1
json platter exit-codes; is '.[9].name' unreachable
json platter volume create later --size 1M --no-wait; is '.id | startswith("job-")' true
json platter job wait "$(jq -r .id "$TMP/json")"; is .state succeeded; is .result.name later
platter event follow --no-follow -o json | jq -es 'length > 0' >/dev/null || fail "no events"

[ "$(platter volume list -o name)" = "$(printf 'db\nlater')" ] || fail "names: $(platter volume list -o name)"
platter volume list | grep -Eq '^db +default +16 MiB ' || fail "the table has no human size: $(platter volume list)"
platter volume show db | grep -Eq '^Size +16 MiB$' || fail "show has no human size"

# More volumes than one page.
for i in $(seq 10 13); do platter volume create "p$i" --size 1M -o name >/dev/null; done
[ "$(platter volume list -o name | wc -l)" = 6 ] || fail "not all volumes are listed"

# Relative paths are the caller's.
mkdir "$TMP/here"
truncate -s 1M "$TMP/here/disk.raw"
(cd "$TMP/here" && platter volume import im disk.raw --source-format raw --progress jsonl -o name) 2>"$TMP/progress" | grep -qx im ||
    fail "import: $(cat "$TMP/progress")"
(cd "$TMP/here" && platter volume export im out.raw --format raw -o name) | grep -qx "$TMP/here/out.raw" || fail "export"
cmp "$TMP/here/disk.raw" "$TMP/here/out.raw" || fail "the export differs"

# Completion, as bash asks for it.
[ "$(platter __complete volume show d)" = db ] || fail "no completion of volumes"
[ "$(platter __complete volume create x --for)" = --format ] || fail "no completion of options"
[ "$(platter __complete volume create x --format = r)" = raw ] || fail "no completion of choices"
[ "$(platter __complete vol)" = volume ] || fail "no completion of nouns"
[ "$(platter __complete job wait "$job")" = "$job" ] || fail "no completion of jobs"
bash -n <(platter completion bash) || fail "the completion script is broken"

# Every command has help, and an unknown one is refused.
platter help | grep -q 'volume create NAME' || fail "help"
platter help volume create | grep -q -- --cluster-size || fail "help of a command"

# docs/commands.md knows every command, option and exit code.
manual=$PLATTER_SOURCE/docs/commands.md
platter help | sed -n '/^Commands/,/^$/s/^  \([a-z-]*\)\( [a-z]*\)\{0,1\} .*/\1\2/p' | sed 's/ *$//' >"$TMP/commands"
[ "$(wc -l <"$TMP/commands")" -ge 26 ] || fail "the help lists too few commands"
while read -r command; do
    grep -q "platter $command" "$manual" || fail "docs/commands.md does not know '$command'"
    # shellcheck disable=SC2086 # noun and verb
    platter help $command | grep -oE '^  --[a-z0-9-]+' | while read -r option; do
        grep -qe "$option" "$manual" || fail "docs/commands.md does not know $option of '$command'"
    done
done <"$TMP/commands"
platter exit-codes -o json | jq -r '.[] | "| \(.code) | \(.name) | \(.meaning) |"' | while read -r line; do
    grep -qF "$line" "$manual" || fail "docs/commands.md lacks: $line"
done
stop_platterd
