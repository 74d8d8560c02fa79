"""Everything that setuptools needs to know stands in settings.ini, which nbdev reads too."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
extras = {key.removesuffix("_requirements"): value.split()
          for key, value in settings.items() if key.endswith("_requirements")}
COURSE = ["train", "constrain", "export", "serve", "mcp"]  # what the lessons need beside a notebook server
extras["lessons"] = sorted({"ipywidgets", *(requirement for name in COURSE for requirement in extras[name])})
extras["all"] = sorted({requirement for group in extras.values() for requirement in group})

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    url=settings["git_url"],
    keywords=settings["keywords"].split(),
    packages=find_packages(include=["toolcall_ft", "toolcall_ft.*"]),
    package_data={"toolcall_ft": ["config.yaml", "course/*", "course/adapter/*", "course/pictures/*", "sample/*", "synthesise.yaml", "viewer.html", "hermes.gotmpl", "tiny_data/*", "tiny_qwen2/*"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": settings["console_scripts"].split()},
)
