"""`hub:ORG/NAME`: the folder, uploaded to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from understudy.errors import first_line
from understudy.export.target import ExportError
from understudy.export.targets.folder import Folder


class Hub(Folder):
    """The folder of `folder`, uploaded as ORG/NAME for `Student.from_pretrained`; `--dry-run` only writes it."""

    name = "hub"
    place = "hub"
    takes_name = True

    def deliver(self, place: Path) -> dict[str, Any]:
        """See `Target.deliver`."""
        if self.export.settings.dry_run:
            return {"repository": self.export.argument, "uploaded": False}
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        hub = HfApi()
        try:
            hub.create_repo(self.export.argument, exist_ok=True)
            commit = hub.upload_folder(
                repo_id=self.export.argument, folder_path=place, commit_message="A student, by understudy"
            )
        except HFValidationError as error:
            raise ExportError(f"'{self.export.argument}' is no name of a repository ({first_line(error)}).") from None
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else None
            advice = {
                401: "Log in first: `hf auth login`, or set HF_TOKEN.",
                403: "The token may not write there: make one with write access.",
                404: "Check the organization's name.",
            }.get(status or 0, "Try again later.")
            raise ExportError(
                f"The hub refused {self.export.argument} (HTTP {status}). {advice} The folder is ready in {place}."
            ) from None
        except Exception as error:  # of the library beneath the client, which has changed more than once
            raise ExportError(
                f"The hub cannot be reached ({first_line(error)}). The folder is ready in {place}; try again, or "
                "upload it by hand."
            ) from None
        return {"repository": self.export.argument, "uploaded": True, "commit": str(commit.oid)}
