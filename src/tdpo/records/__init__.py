"""What lies on disk: names of files, JSON, JSON lines, CSV, locks, and the schema of a study's tables. Loads no torch.

Those who write a run directory or a study's folder (`runs`, `training`, `comparison`) and those who read it (`report`)
share this room, so that each format is written down once.

    names          names of the files in a run directory and in a study's folder
    files          text and bytes that appear whole or not at all; errors that name the file and the free space
    folders        folders that appear whole or not at all
    json_files     JSON and JSON lines
    csv_files      CSV that a spreadsheet may open
    locks          files that say that a process is at work
    dotted         nested mappings by dotted keys
    study_tables   cells and rows of a study, and the columns of its tables
    study_about    what about.json says of a study's tasks and arms
    metrics        names and units of a study's metrics
"""
