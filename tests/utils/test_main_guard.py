"""A script without a main guard is rejected with a message before any process starts."""

import subprocess
import sys

import pytest

IMPORT = "from viewalign.utils.main_guard import check_main_guard\n"
CALL = IMPORT + "check_main_guard('viewalign.finetune')\nprint('went on')\n"
GUARDED = (
    IMPORT
    + "def main():\n    check_main_guard('viewalign.finetune')\n"
    + "    print('went on')\nif __name__ == '__main__':\n    main()\n"
)


@pytest.mark.parametrize(("text", "passes"), [(CALL, False), (GUARDED, True)])
def test_scripts_with_and_without_a_guard(text, passes, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(text)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ("went on" in done.stdout) == passes
    assert ("UserError" in done.stderr and str(script) in done.stderr) != passes


def test_a_text_given_to_python_needs_none():
    done = subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True, check=True)
    assert "went on" in done.stdout
