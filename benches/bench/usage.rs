//! How much processor time the parties take, from /proc: it tells what limits a figure.

use std::time::Duration;

/// proc(5): these times are in clock ticks, and a tick is a hundredth of a second on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// User and system time of a process so far.
pub fn processor_time(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name may hold anything: count from behind its closing bracket. utime and stime are fields 14 and 15.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u32 = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    TICK * ticks
}

/// The time of some processes together.
pub fn processor_times(processes: &[u32]) -> Duration {
    processes.iter().copied().map(processor_time).sum()
}
