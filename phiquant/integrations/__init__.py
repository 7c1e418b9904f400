"""Where phiquant meets other libraries; nothing here is imported before its library is."""
