//! `rprocd-guest-check`: runs inside the guest, drives its rpmsg devices and checks what comes
//! back, byte by byte. Each command ends with one line that a program can read; the exit code is
//! 0 only when nothing was wrong.

mod agent;
mod compare;
mod ctrl;
mod exchange;
mod list;
mod survive;
mod tty;
mod wait;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage:
  rprocd-guest-check list
  rprocd-guest-check exchange DEV [--count N] [--size S] [--window W]
  rprocd-guest-check compare [--rpmsg DEV] [--vsock PORT] [--serial NAME]
                             [--rounds N] [--round-trips N] [--stream-ms N]
  rprocd-guest-check create-channel CTRL NAME DST
  rprocd-guest-check release-channel CTRL NAME DST
  rprocd-guest-check create-endpoint CTRL NAME SRC DST
  rprocd-guest-check tty DEV TEXT
  rprocd-guest-check survive DEATHS
  rprocd-guest-check die illegal|wild-store|stack-overflow|hang
  rprocd-guest-check agent DEV
  rprocd-guest-check ask SOCKET SECONDS COMMAND
Addresses are decimal or 0x hexadecimal; `any` is 0xffffffff.";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// `Ok(false)`: it ran, and something was wrong.
fn run(words: &[&str]) -> Result<bool> {
    match words {
        ["list"] => list::list(),
        ["exchange", device, options @ ..] => {
            exchange::exchange(device, &exchange::Options::parse(options)?)
        }
        ["compare", options @ ..] => compare::compare(&compare::Options::parse(options)?),
        ["create-channel", control, name, dst] => {
            ctrl::create_channel(control, name, address(dst)?)
        }
        ["release-channel", control, name, dst] => {
            ctrl::release_channel(control, name, address(dst)?)
        }
        ["create-endpoint", control, name, src, dst] => {
            ctrl::create_endpoint(control, name, address(src)?, address(dst)?)
        }
        ["tty", device, text] => tty::check_echo(device, text),
        ["survive", deaths] => {
            let deaths = deaths.parse();
            survive::survive(deaths.context("DEATHS must be a number")?)
        }
        ["die", death] => survive::die(death),
        ["agent", device] => agent::serve(device).map(|()| true),
        ["ask", socket, seconds, command] => {
            let seconds = seconds.parse().context("SECONDS must be a number")?;
            let (exit, output) = agent::ask(socket, Duration::from_secs(seconds), command)?;
            std::io::stdout().write_all(&output)?;
            Ok(exit == 0)
        }
        _ => bail!("{USAGE}"),
    }
}

fn address(word: &str) -> Result<u32> {
    let parsed = match word.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None if word == "any" => Ok(u32::MAX),
        None => word.parse(),
    };
    parsed.with_context(|| format!("`{word}` is not an rpmsg address (32 bits)"))
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn addresses_are_decimal_hexadecimal_or_any() {
        assert_eq!(address("1024").unwrap(), 1024);
        assert_eq!(address("0x400").unwrap(), 1024);
        assert_eq!(address("any").unwrap(), u32::MAX);
        assert!(address("-1").is_err());
    }
}
