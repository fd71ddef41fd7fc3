"""Pictures and videos: files to arrays, and sound back into videos."""
