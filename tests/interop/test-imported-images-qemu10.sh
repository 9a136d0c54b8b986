#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every kind of image that the newer qemu-img of backports makes, through every export.
. "$(dirname "$0")/../lib/functions.sh"
. "$(dirname "$0")/../lib/platterd.sh"
. "$(dirname "$0")/../lib/backports.sh"
backports_qemu
. "$(dirname "$0")/imported-images.sh"
