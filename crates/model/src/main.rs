//! `model FAULTS [PARTITIONS [TASKS]] [OPTIONS]`: searches one scenario and prints its findings, each with the shortest
//! trace.
//!
//! Without arguments it reads scenarios from standard input, one per line; `--help` lists faults and twins.

use model::{Fault, Report, Scenario, Search, Twin};
use std::io::{self, BufRead, Write};
use std::process::ExitCode;

fn main() -> io::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let lines: Vec<String> =
        if words.is_empty() { io::stdin().lock().lines().collect::<Result<_, _>>()? } else { vec![words.join(" ")] };
    let mut output = io::stdout().lock();
    if words.iter().any(|word| word == "--help") {
        help(&mut output)?;
        return Ok(ExitCode::SUCCESS);
    }
    for line in lines.iter().filter(|line| !line.trim().is_empty()) {
        match line.parse::<Scenario>() {
            Ok(scenario) => {
                let (search, report) = Search::run(&scenario);
                print(&mut output, line, &scenario, &search, &report)?;
            }
            Err(error) => {
                writeln!(
                    io::stderr(),
                    "{line}: {error}; --help lists faults and twins, crates/model/README.md also options"
                )?;
                return Ok(ExitCode::from(2));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn help(output: &mut impl Write) -> io::Result<()> {
    let faults: Vec<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
    writeln!(output, "model FAULTS [PARTITIONS [TASKS]] [OPTIONS]; crates/model/README.md lists the options")?;
    writeln!(output, "Faults, joined by '+': none, {}", faults.join(", "))?;
    writeln!(output, "Twins, for --rules, joined by '+', and the rules that each breaks:")?;
    for twin in Twin::ALL {
        let rules: Vec<String> = twin.rules().iter().map(u8::to_string).collect();
        writeln!(output, "  {:22} {:7} {}", twin.name(), rules.join(", "), twin.text())?;
    }
    Ok(())
}

fn print(
    output: &mut impl Write,
    line: &str,
    scenario: &Scenario,
    search: &Search<'_>,
    report: &Report,
) -> io::Result<()> {
    let extent = if report.complete { "complete" } else { "NOT complete" };
    let Report { states, steps, second_runs, .. } = report;
    let seconds = report.duration.as_secs_f64();
    writeln!(
        output,
        "{line}: {states} states, {steps} steps, {seconds:.1} s, {extent}, states with a second run: {second_runs}"
    )?;
    for (finding, number) in report.findings() {
        writeln!(output, "  BROKEN: {finding}")?;
        let trace = if scenario.quiet { Vec::new() } else { search.trace(number) };
        trace.iter().try_for_each(|step| writeln!(output, "    {step}"))?;
    }
    Ok(())
}
