"""Files: keys, trust, policy, configuration, the audit log. Owner and mode are judged before a byte is believed."""
