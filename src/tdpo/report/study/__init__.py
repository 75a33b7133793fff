"""The report of a study: one self-contained HTML file from the tables that `tdpo compare` leaves in its folder."""
