#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the API refuses: unknown things, wrong types, too much; each with its status and code, and nothing changed.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
requires jq --version
start_platterd

api_refuses 404 not-found GET /v1/nothing
api_refuses 404 not-found GET /v1/volumes/none
api_refuses 404 not-found GET /v1/pools/none
api_refuses 404 not-found GET /v1/attachments/none
api_refuses 404 not-found GET /v1/jobs/none
api_refuses 404 not-found DELETE /v1/volumes/none
api_refuses 405 unsupported PUT /v1/volumes '{}'
api_refuses 400 invalid GET '/v1/volumes?bogus=1'
api_refuses 400 invalid GET '/v1/volumes?limit=0'
api_refuses 400 invalid GET '/v1/volumes?limit=many'
api_refuses 400 invalid GET '/v1/events?after=-1'
api_refuses 400 invalid GET '/v1/events?follow=2'
api_refuses 400 invalid GET '/v1/volumes/%zz'
api_refuses 400 invalid GET '/v1/volumes/a%0ab'
api_refuses 400 invalid GET '/v1/volumes/%ff'

# Bodies.
api_refuses 400 invalid POST /v1/volumes ''
api_refuses 400 invalid POST /v1/volumes '{'
api_refuses 400 invalid POST /v1/volumes '[]'
api_refuses 400 invalid POST /v1/volumes '{"name":"a"}'
api_refuses 400 invalid POST /v1/volumes '{"name":"a","size":4096,"bogus":1}'
api POST /v1/volumes '{"name":"a","size":4096,"bogus":1}' | grep -q "unknown member 'bogus'" || fail "the member is not named"
api_refuses 400 invalid POST /v1/volumes '{"name":"a","name":"b","size":4096}'
api_refuses 400 invalid POST /v1/volumes '{"name":"a","size":"4096"}'
api_refuses 400 invalid POST /v1/volumes '{"name":"a","size":-1}'
api_refuses 400 invalid POST /v1/volumes '{"name":"a","size":1.5}'
api_refuses 400 invalid POST /v1/volumes '{"name":"a","size":4096,"format":"vmdk"}'
api_refuses 400 invalid POST /v1/volumes '{"name":"a","size":4096,"extended_l2":1}'
api_refuses 400 invalid POST /v1/volumes '{"name":"a","size":4096,"cluster_size":4294967296}'
api_refuses 400 invalid POST /v1/volumes '{"name":"a\u0001b","size":4096}'
api_refuses 400 invalid POST /v1/volumes '{"name":null,"size":4096}'
api_refuses 400 invalid POST '/v1/volumes?wait=soon' '{"name":"a","size":4096}'
api_refuses 400 invalid POST /v1/volumes/import '{"name":"a","source":"/x","source_format":"raw","parents":[{"path":"/y"}]}'
api_refuses 400 invalid POST /v1/attachments '{"volume":"a","kind":"cloud"}'
api_refuses 400 invalid GET /v1/volumes '{}'
head -c 1100000 /dev/zero >"$TMP/large"
api_refuses 413 too-large POST /v1/volumes "@$TMP/large"

# Names, before anything exists.
make_pool
for name in '..' '.a' '-a' 'a/b' 'a b' 'a..b' "$(printf 'x%.0s' {1..64})"; do
    api_refuses 400 invalid POST /v1/volumes "{\"name\":\"$name\",\"size\":1048576}"
done
[ "$(platter volume list -o json)" = '[]' ] || fail "a refused request left a volume"
[ -z "$(platter job list -o name)" ] || fail "a refused request left a job"
stop_platterd
