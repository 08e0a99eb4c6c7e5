#!/usr/bin/env bash
# Cleans up after a test process, also after a killed one. The test process writes to stdin what it starts and what has
# ended. When stdin closes, this script kills and removes the rest.
set -u
kafka=$(dirname "$0")/../../../scripts/kafka
declare -A processes=() brokers=() folders=()
while IFS= read -r line; do
  what=${line#* }
  case $line in
    'process '*) processes[$what]=1 ;;
    'ended '*) unset "processes[$what]" ;;
    'broker '*) brokers[$what]=1 ;;
    'folder '*) folders[$what]=1 ;;
  esac
done
for process in "${!processes[@]}"; do kill -KILL "$process" 2>/dev/null; done
for data in "${!brokers[@]}"; do [ -d "$data" ] && "$kafka" stop --kill --data "$data" 2>/dev/null; done
for folder in "${!folders[@]}"; do
  # Processes that a killed drill started have the drill's folder in their environment.
  grep -lsF "FOLDER=$folder/" /proc/[0-9]*/environ |
    while IFS=/ read -r _ _ left _; do kill -KILL "$left" 2>/dev/null; done
  rm -rf "$folder"
done
