//! Which program of this machine an image stands for.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A program that stands for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Where it lies on the machine.
    pub source: PathBuf,
    /// Where a container sees it: its entrypoint.
    pub path: PathBuf,
    /// What its entrypoint says before the arguments of a pod.
    pub args: Vec<String>,
}

impl Image {
    /// A program that a container sees as `/NAME`.
    pub fn new(source: impl Into<PathBuf>, name: &str) -> Self {
        Self { source: source.into(), path: Path::new("/").join(name), args: Vec::new() }
    }

    /// Adds arguments to its entrypoint.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }
}

/// Images by the last part of their names: `ferrogate` for `registry.example/ferrogate:v1`.
#[derive(Clone, Debug, Default)]
pub struct Images(BTreeMap<String, Image>);

impl Images {
    /// Adds one.
    #[must_use]
    pub fn with(mut self, name: &str, image: Image) -> Self {
        self.0.insert(name.to_owned(), image);
        self
    }

    /// The program that stands for an image, whatever its registry, tag and digest.
    pub fn find(&self, image: &str) -> Option<&Image> {
        let image = image.split('@').next().unwrap_or(image);
        let name = image.rsplit('/').next().unwrap_or(image);
        self.0.get(name.split(':').next().unwrap_or(name))
    }
}

/// What a container runs: the program, as it sees it, and its arguments.
///
/// # Errors
/// When its command names something that is not in the image; the text says what.
pub fn command(image: &Image, command: &[String], args: &[String]) -> Result<(PathBuf, Vec<String>), String> {
    let Some((program, first)) = command.split_first() else {
        // As with real images, arguments replace nothing of the entrypoint.
        return Ok((image.path.clone(), [&image.args, args].concat()));
    };
    let wanted = Path::new(program);
    if wanted != image.path && Some(wanted.as_os_str()) != image.path.file_name() {
        return Err(format!("{program:?} is not in the image, which has {} only", image.path.display()));
    }
    Ok((image.path.clone(), [first, args].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_goes_by_the_last_part_of_its_name() {
        let images = Images::default().with("web", Image::new("/machine/web", "web"));

        for name in ["web", "web:v1", "registry.example:5000/team/web:v1", "registry.example/web@sha256:abc"] {
            assert!(images.find(name).is_some(), "{name}");
        }
        assert_eq!(images.find("registry.example/website"), None);
    }

    #[test]
    fn a_command_replaces_the_entrypoint_and_must_be_in_the_image() {
        let image = Image::new("/machine/web", "web").args(&["serve"]);
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();

        assert_eq!(command(&image, &[], &words(&["-v"])), Ok(("/web".into(), words(&["serve", "-v"]))));
        assert_eq!(command(&image, &words(&["web", "a"]), &words(&["b"])), Ok(("/web".into(), words(&["a", "b"]))));
        assert!(command(&image, &words(&["/bin/sh"]), &[]).is_err_and(|error| error.contains("/bin/sh")));
    }
}
