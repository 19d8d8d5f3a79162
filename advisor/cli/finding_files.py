"""Files that tl-advise writes besides its answer: exported findings, a clean manifest, a page."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from advisor.cli.console import fail, print_note
from advisor.types.flags import Flag
from advisor.types.options import SuspiciousLabels

if TYPE_CHECKING:
    from advisor.advise import Prepared
    from advisor.types.advice import Advice
    from strategies.data.dataset import Dataset


@dataclass(frozen=True)
class FindingFiles:
    """Files that are made from the findings."""

    export_findings: Annotated[
        Path | None,
        Flag(
            "Also write all affected images of the findings to this folder: as JSON, Parquet, "
            "and CSV for FiftyOne and Label Studio.",
            panel="Output",
        ),
    ] = None
    write_manifest: Annotated[
        Path | None,
        Flag(
            "Also write a manifest (.csv or .tsv) without copies, leaks and contradictory "
            "labels, and with near-duplicates grouped. tl-advise reads it.",
            panel="Output",
        ),
    ] = None
    suspicious_labels: Annotated[
        SuspiciousLabels,
        Flag("What --write-manifest does with suspicious labels (TL009).", panel="Output"),
    ] = "keep"

    @property
    def are_wanted(self) -> bool:
        """Whether a file is to be written."""
        return self.export_findings is not None or self.write_manifest is not None

    def check(self) -> None:
        """Refuse paths that cannot be used, before any work is done.

        Raises
        ------
        StorageError
            If a file exists, or has the wrong suffix.
        """
        if self.suspicious_labels != "keep" and self.write_manifest is None:
            fail(f"--suspicious-labels {self.suspicious_labels} needs --write-manifest.")
        if self.export_findings is not None:
            from advisor.findings.exports import NEEDS_PYARROW, has_pyarrow, refuse_existing

            refuse_existing(self.export_findings)
            if not has_pyarrow():
                print_note(NEEDS_PYARROW)
        if self.write_manifest is not None:
            from advisor.findings.clean_manifest import check_manifest_path

            check_manifest_path(self.write_manifest)

    def write(self, dataset: "Dataset", advice: "Advice") -> None:
        """Write the files, and print to stderr what they hold."""
        if self.export_findings is not None:
            from advisor.findings.exports import export_findings, local_files_root

            written = export_findings(advice.findings, advice.data, self.export_findings)
            root = local_files_root(advice.findings, advice.data)
            names = ", ".join(path.name for path in written)
            print_note(
                f"{self.export_findings}: {names}. Label Studio's "
                f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is {root}."
            )
        if self.write_manifest is not None:
            from advisor.findings.clean_manifest import clean_manifest, write_manifest

            manifest = clean_manifest(dataset, advice.findings, self.suspicious_labels)
            write_manifest(manifest, self.write_manifest)
            print_note(f"{self.write_manifest}: {len(manifest.rows):,} of {manifest.n:,} images.")
            for code, change in manifest.changes.items():
                print_note(f"  {code}: {change}")


def advise_with_files(
    prepared: "Prepared", time_s: float | None, html: Path | None, files: FindingFiles
) -> "Advice":
    """Recommend a strategy, and write the files and the page that were asked for."""
    from advisor.advise import advise_on

    if files.write_manifest is not None:
        from advisor.findings.clean_manifest import refuse_sample

        refuse_sample(prepared.dataset)  # before measuring, which takes longer than loading
    advice = advise_on(prepared, time_s)
    files.write(prepared.dataset, advice)
    if html is not None:
        from advisor.report.files import write_page
        from advisor.report.gallery import make_gallery

        hidden = prepared.dataset.hide_test()
        write_page(html, advice, make_gallery(advice, hidden, prepared.backbone, prepared.ctx))
    return advice
