"""The whole path in three minutes: pictures drawn here, a tiny CLIP, three methods, one table."""
