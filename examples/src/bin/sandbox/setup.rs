//! `setup`: what the first run would obtain, obtained now.

use sandbox_core::vm::image::ImageStore;
use sandbox_core::vm::kernel::Kernel;
use sandbox_core::{Dirs, Error, Image, Step};

use crate::cli;
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output;
use crate::progress::Waiting;

/// Obtains the guest's kernel and makes the default image.
pub(crate) async fn setup(dirs: &Dirs, arguments: &cli::Setup) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let waiting = Waiting::on("looking at the cache");
    let progress = waiting.progress();
    let work = async {
        let store = ImageStore::new(&dirs.cache);
        if arguments.rebuild {
            let kernel =
                Kernel::update_from_distribution(&dirs.cache, progress.part(Step::Machine)).await?;
            let image = store
                .rebuild(&Image::Default, progress.part(Step::Machine))
                .await?;
            return Ok((kernel, image));
        }
        let kernel = Kernel::from_distribution(&dirs.cache, progress.part(Step::Machine)).await?;
        let image = store
            .prepare(&Image::Default, progress.part(Step::Machine))
            .await?;
        Ok::<_, Error>((kernel, image))
    };
    let (kernel, image) = interrupts.or(work).await??;
    drop(waiting);
    let text = format!(
        "kernel  {}\nimage   {}\n",
        kernel.version,
        image.path.display()
    );
    output::print(text.as_bytes())?;
    Ok(0)
}
