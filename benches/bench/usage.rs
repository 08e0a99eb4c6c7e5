//! Processor time of processes, from /proc; it shows which process limits a figure.

use std::time::Duration;

/// The unit of the times in proc_pid_stat(5): a clock tick, which is a hundredth of a second on Linux.
const TICK: Duration = Duration::from_millis(10);

/// User and system time of a process so far.
pub fn processor_time(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name may contain any character, so the fields count after its closing bracket: utime is 14, stime is 15.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u32 = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    TICK * ticks
}

/// Sum of the processor times of these processes.
pub fn processor_times(processes: &[u32]) -> Duration {
    processes.iter().copied().map(processor_time).sum()
}
