//! A README as a program: its ```` ```sh ```` blocks are run in order in one shell, and every line of a ```` ```text ````
//! block right after one must stand in what that block printed. Other blocks are for reading only.

use std::{
    fs,
    io::Read,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::workspace;

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The word after the fence.
    pub language: String,
    /// What stands between the fences.
    pub text: String,
}

/// Every fenced block of a Markdown text, in order.
pub fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open = None::<Block>;
    for line in markdown.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => open = Some(Block { language: language.trim().to_owned(), text: String::new() }),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    blocks
}

/// What stands before every README: the shell stops at the first failure, and `curl` waits for servers that were
/// started a moment ago. It goes straight to them, whatever proxy the machine has for the rest of the world.
const PROLOGUE: &str = r#"
set -euo pipefail
curl() {
    command curl --silent --show-error --fail --noproxy '*' --max-time 10 \
        --retry 60 --retry-delay 1 --retry-all-errors "$@"
}
"#;

/// Runs a README, from the root of the workspace and with the binary that ships in the search path. Commands that
/// `leave_out` chooses are not run. Whatever it started in the background ends with it.
///
/// # Errors
/// When a command fails, or does not print what the README says.
pub fn run(readme: &Path, ferrogate: &Path, leave_out: impl Fn(&str) -> bool) -> Result<()> {
    let markdown = fs::read_to_string(readme).with_context(|| format!("reading {}", readme.display()))?;
    let blocks = blocks(&markdown);
    let mut script = PROLOGUE.to_owned();
    for (number, block) in blocks.iter().enumerate().filter(|(_, block)| block.language == "sh") {
        script += &format!("echo '{}'\n", marker(number));
        script.extend(block.text.lines().filter(|line| !leave_out(line.trim())).map(|line| format!("{line}\n")));
    }
    script += &format!("echo '{}'\n", marker(blocks.len()));

    let output = shell(&script, ferrogate).with_context(|| format!("running {}", readme.display()))?;
    for (number, pair) in blocks.windows(2).enumerate() {
        if let [command, expected] = pair
            && command.language == "sh"
            && expected.language == "text"
        {
            let printed = printed_by(&output, number);
            for line in expected.text.lines() {
                ensure!(printed.contains(line), "{} was to print {line:?}, but printed:\n{printed}", command.text);
            }
        }
    }
    Ok(())
}

fn marker(number: usize) -> String {
    format!("::: block {number}")
}

fn printed_by(output: &str, number: usize) -> &str {
    let Some((_, rest)) = output.split_once(&format!("{}\n", marker(number))) else { return "" };
    rest.split_once("::: block ").map_or(rest, |(printed, _)| printed)
}

fn shell(script: &str, ferrogate: &Path) -> Result<String> {
    let folder = ferrogate.parent().context("the binary lies in a folder")?;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let (mut reader, writer) = std::io::pipe()?;
    let mut command = workspace::Command::new("bash").args(["-c", script]).env("PATH", path).to_std();
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = spawn_group(&mut command)?;
    // The command holds write ends of the pipe, and the output ends only when they are closed.
    drop(command);
    let group = Pid::from_raw(child.id().cast_signed());
    let reading = std::thread::spawn(move || {
        let mut output = Vec::new();
        reader.read_to_end(&mut output).map(|_| output)
    });
    let status = child.wait()?;
    let _ = killpg(group, Signal::SIGKILL);
    let output = reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    let output = String::from_utf8_lossy(&output).into_owned();
    ensure!(status.success(), "{status}; it printed:\n{output}");
    Ok(output)
}

fn spawn_group(command: &mut Command) -> std::io::Result<std::process::Child> {
    command.process_group(0).spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_text(text: &str) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let readme = folder.path().join("README.md");
        fs::write(&readme, text)?;
        run(&readme, Path::new("/nonexistent/ferrogate"), |line| line.starts_with("never"))
    }

    #[test]
    fn blocks_are_found_with_their_language() {
        let found = blocks("a\n```sh\nls\n```\nb\n```\nplain\n```\n");

        let block = |language: &str, text: &str| Block { language: language.to_owned(), text: text.to_owned() };
        assert_eq!(found, [block("sh", "ls\n"), block("", "plain\n")]);
    }

    #[test]
    fn commands_run_in_one_shell_and_say_what_is_expected() {
        run_text("```sh\nx=7\n```\n```sh\necho got $x\nnever run this\n```\n```text\ngot 7\n```\n").unwrap();
    }

    #[test]
    fn a_command_that_fails_is_an_error() {
        assert!(run_text("```sh\nfalse\n```\n").is_err());
    }

    #[test]
    fn other_output_than_promised_is_an_error() {
        let error = run_text("```sh\necho one\n```\n```text\ntwo\n```\n").unwrap_err();

        assert!(error.to_string().contains("was to print \"two\""));
    }

    #[test]
    fn what_runs_in_the_background_ends_with_the_readme() {
        // Otherwise this test would wait ten minutes for the output to end.
        run_text("```sh\nsleep 600 &\necho started\n```\n").unwrap();
    }
}
