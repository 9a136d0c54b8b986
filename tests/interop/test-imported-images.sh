#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every kind of image that the installed qemu-img makes, through every export.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
. "$(dirname "$0")/imported-images.sh"
