"""Lead the participants of studies through their pages: from the link that they come by to their ending."""
