#!/usr/bin/env bash
# All that only a card can show, in under ten minutes: tests/gpu/device.sh [RESULT.json]
# On a machine without one: tests/gpu/device.sh --dry-run, which goes through every part on the simulated device.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec timeout 590 python -W ignore -m tests.gpu.device "${@:-device.json}"
