"""What npmeta survives: kills, damaged and hostile files, bad calls, full disks, odd encodings."""
