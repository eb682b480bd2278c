#!/usr/bin/env bash
# install-system.sh demo|test: installs the Debian packages that pip can't bring, where we may.
# As root, or with a sudo that asks no password, they are installed; otherwise what is missing is named and
# the work goes on: each has a fallback, or its tests are skipped and say so.
set -euo pipefail

# libpython: Triton's Python backend links it. EGL and Mesa: off-screen 3D rendering without a GPU.
demo=(python3.11-venv libpython3.11 libegl1 libgl1-mesa-dri)
# The real counterparts that the tests talk to, and the validators.
test=("${demo[@]}" orthanc orthanc-dicomweb dcmtk dicom3tools libpixelmed-java default-jre-headless postgresql prometheus
  chromium systemd rsyslog rsyslog-gnutls)
# Fetches OHIF for the browser test; Node.js that isn't Debian's has an npm of its own.
command -v npm >/dev/null || test+=(npm)

case ${1:-} in
  demo) wanted=("${demo[@]}") ;;
  test) wanted=("${test[@]}") ;;
  *) echo "usage: $0 demo|test" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
  echo "not a Debian system: install the equivalents of: ${wanted[*]}" >&2
  exit 0
fi
missing=()
for package in "${wanted[@]}"; do
  dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
  as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo)
else
  echo "not installed, and no right to install: ${missing[*]}" >&2
  echo "an administrator can: apt-get install ${missing[*]}" >&2
  exit 0
fi
echo "installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
# Daemons that a package would start are not wanted here: tests and demo start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod +x "$policy"
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
