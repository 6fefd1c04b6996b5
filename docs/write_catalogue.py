"""Brings the catalogues of reports and plans up to date with the sentences in the code; `--check` only says what is not.

A sentence that was reworded is a new message without a translation, and its old translation goes. Write the new one into the `.po` file:
the holes (`{run}`) must be those of the message.
"""

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po

import pd_planner
import pd_simulator
from pd_analysis.words import formulas
from pd_analysis.words.language import LANGUAGES
from pd_contracts import profiles, records, settings
from pd_contracts.clock_events import SLOWDOWNS
from pd_loadgen import prompts, workload
from pd_loadgen.workload import options as loadgen
from pd_planner.cli import traffic

PACKAGE = Path(formulas.__file__).parents[1]
FOLDERS = (
    PACKAGE,
    *(
        Path(module.__file__).parent
        for module in (records, pd_planner, pd_simulator, prompts, workload)
        if module.__file__
    ),
)
KEYWORDS = {
    "tr": None,
    "mark": None,
    "Sentence": None,
    "RecordError": None,
    "FolderError": None,
    "LimitError": None,
    "ProfileError": None,
    "Refusal": None,
    "SettingsError": None,
    "FileError": None,
    "PlanError": None,
    "Clause": None,
    "_RowError": None,
    "ntr": (1, 2),
}
METHODS = [("**.py", "python"), ("**/templates/**.j2", "jinja2")]
# Templates end blocks as the report's own environment does.
OPTIONS = {"**/templates/**.j2": {"trim_blocks": "true", "lstrip_blocks": "true", "silent": "false"}}


def extracted() -> Catalog:
    """Every message of the code, in the order of the files; places go without line numbers, so that a moved line changes nothing."""
    catalogue = Catalog(project="pdstack")
    with redirect_stderr(io.StringIO()):  # Babel warns of f-strings, also of those that fill a hole
        found = [
            (f"{folder.name}/{file}", line, message)
            for folder in FOLDERS
            for file, line, message, _, _ in extract_from_dir(folder, METHODS, OPTIONS, keywords=KEYWORDS)
        ]
    for file, _, message in sorted(found, key=lambda each: each[:2]):
        catalogue.add(message, locations=[(file, 0)])
    for text in (*formulas.ALL, *formulas.ALL.values()):
        catalogue.add(text, locations=[("pd_analysis/words/formulas.py", 0)])
    for name in profiles.shipped():
        catalogue.add(profiles.document(name)["description"], locations=[(f"pd_contracts/profiles/{name}.toml", 0)])
    shown = {field.name: field for field in settings.fields(loadgen.Options)}
    for name in traffic.SHOWN:
        catalogue.add(loadgen.help_of(shown[name]), locations=[("pd_loadgen/workload/options.py", 0)])
    for text in SLOWDOWNS.values():
        catalogue.add(text, locations=[("pd_contracts/clock_events.py", 0)])
    return catalogue


def path_of(lang: str) -> Path:
    """Where a language's catalogue lies."""
    return PACKAGE / "words" / f"{lang}.po"


def updated(lang: str) -> Catalog:
    """The messages of the code with the translations that the catalogue has for them."""
    path = path_of(lang)
    known = read_po(io.BytesIO(path.read_bytes() if path.exists() else b""), locale=lang)
    catalogue = Catalog(locale=lang, project="pdstack", fuzzy=False)
    for message in extracted():
        if message.id:
            old = known.get(message.id)
            catalogue.add(message.id, old.string if old else None, locations=message.locations)
    return catalogue


def text_of(catalogue: Catalog) -> str:
    out = io.BytesIO()
    write_po(out, catalogue, width=0, omit_header=True, include_lineno=False, sort_output=False)
    head = f'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=utf-8\\n"\n"Language: {catalogue.locale}\\n"\n'
    return f'{head}"Plural-Forms: {catalogue.plural_forms}\\n"\n\n{out.getvalue().decode().strip()}\n'


def untranslated(catalogue: Catalog) -> list[Message]:
    """Messages without a translation."""
    return [message for message in catalogue if message.id and not any(strings_of(message))]


def strings_of(message: Message) -> tuple[str, ...]:
    """Its translations: one, or one a plural form."""
    return tuple(map(str, message.string)) if isinstance(message.string, tuple) else (str(message.string or ""),)


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    complete = True
    for lang in LANGUAGES[1:]:
        catalogue, path = updated(lang), path_of(lang)
        for message in untranslated(catalogue):
            sys.stderr.write(f"{path.name}: no translation of {message.id!r}\n")
        complete = complete and not untranslated(catalogue)
        if check and path.read_text(encoding="utf-8") != text_of(catalogue):
            sys.stderr.write(f"{path.name} differs from the code: python docs/write_catalogue.py\n")
            complete = False
        if not check:
            path.write_text(text_of(catalogue), encoding="utf-8")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
